"""Anybody's check of a run, from the chain and the store alone.

:mod:`~fl_node.audit.auditor` reads plan and history and runs four checkers over them: :mod:`~fl_node.audit.senders`
(who signed what, and whether the contract agrees with its log), :mod:`~fl_node.audit.synchronous` or
:mod:`~fl_node.audit.asynchronous` (whether each global file follows from its local files), and
:mod:`~fl_node.audit.evidence` (what an ensemble's evidence says). The last three share a
:class:`~fl_node.audit.case.Case`, and what all find is a :class:`~fl_node.audit.result.Audit`.
"""
