"""The patch series on MaskGRPO: apply, unapply, check, export, and move it to another commit of upstream.

    python -m htgrpo_ext.patches apply        (or `make apply-patches`; plain Python and git, no environment needed)

A patch only ever inserts lines, and is stored without context. Nothing but blob ids then says where its lines belong,
so they are all this tool trusts: on the pinned commit a patch is applied to just the file it was made from and has to
give just the file it recorded; on any other commit only a three-way merge of whole files counts. Wherever lines went,
each must stand in the function that its patch names, else nothing is changed.

In upstream/ the applied series is a chain of commits on top of the base, one per patch, on a detached HEAD, with fixed
author and date: the same series always gives the same commit. Trees are built in an index of their own, so a failure
leaves the checkout as it was.
"""
