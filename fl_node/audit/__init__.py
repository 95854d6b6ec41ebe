"""The audit of a run, which recomputes it from chain and store; anyone can do this.

:mod:`~fl_node.audit.auditor` reads plan and history and runs the checks: :mod:`~fl_node.audit.senders` (who signed
each event, and whether the contract agrees with its log), :mod:`fl_node.protocol.verification` (whether each global
file follows from its local files), :mod:`~fl_node.audit.verdicts` (what learners attested and rejected),
:mod:`~fl_node.audit.budget` (the privacy budget), and :mod:`~fl_node.audit.journals` (whether the chain agrees with
what the roles recorded during the run).
"""
