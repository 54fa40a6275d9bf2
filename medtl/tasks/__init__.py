"""What classification and segmentation do differently, one file each, behind one `Task`; and what they do alike.

task.py            the contract
classification.py  from labels
segmentation.py    from masks
ways.py            ways to a model: an encoder with a fine-tuning strategy, or with an adaptation method
study.py           ways trained on one cohort, tested on what was held out, and reported
"""
