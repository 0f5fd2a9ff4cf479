"""Off the request path: the queue, the jobs, the training, the reconciler."""
