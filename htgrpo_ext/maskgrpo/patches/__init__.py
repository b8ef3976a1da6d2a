"""The patch series on MaskGRPO: apply, unapply, check, export, and move it to another commit of upstream.

    python -m htgrpo_ext.maskgrpo.patches apply   (or `make apply-patches`; plain Python and git, no environment needed)

Applying clones MaskGRPO into upstream/ where that is empty.

A patch only inserts lines and is stored without context, so only its blob ids say where the lines belong. On the pinned
commit git inserts them by number, and the result must be the blob that the patch records. On any other commit only
git's three-way merge of whole files counts. The lines must then stand where the patch says:

    Hook-In      the functions, `module` outside of all
    Hook-After   names or patterns of names (coef_?) that also stand above, and are not assigned below
    Hook-Before  those that stand only below

and in order with the variables they read and set (placement.py).

In upstream/ the series is a chain of commits on the base, one per patch, on a detached HEAD, with fixed author and
date: the same series always gives the same commits. They are made in an index of their own: a failure changes no file.
"""
