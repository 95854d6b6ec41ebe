"""What the published files of a run reveal about its training images: membership inference and reconstruction.

For the laboratory. An attack reads what every member of the swarm can read: the chain's log, the plan, the model
files. What it claims is then compared with the truth, which only a laboratory knows: plan and data set say which
images each learner has.
"""
