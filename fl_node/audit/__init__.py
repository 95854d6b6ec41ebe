"""The audit of a run: anyone recomputes it from chain and store.

:mod:`~fl_node.audit.auditor` reads plan and history and has the checks go through them: :mod:`~fl_node.audit.senders`
(who signed what, and whether the contract agrees with its log), :mod:`fl_node.protocol.verification` (whether each
global file follows from its local files), :mod:`~fl_node.audit.verdicts` (what learners attested and rejected), and
:mod:`~fl_node.audit.journals` (whether the chain still says what the roles once saw).
"""
