"""The patch series on MaskGRPO: apply, unapply, check, export, and move it to another commit of upstream.

    python -m htgrpo_ext.maskgrpo.patches apply   (or `make apply-patches`; plain Python and git, no environment needed)

A patch only inserts lines and is stored without context, so only its blob ids say where the lines belong. On the pinned
commit git inserts them by number, and the result must be the blob that the patch records. On any other commit only
git's three-way merge of whole files counts. Each line must then stand in the function that the patch names.

In upstream/ the series is a chain of commits on the base, one per patch, on a detached HEAD, with fixed author and
date: the same series always gives the same commits. They are made in an index of their own: a failure changes no file.
"""
