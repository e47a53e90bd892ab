"""Starting children without stopping the event loop: a helper process and its client.

A fork or vfork in the worker stops its loop until the child has called exec: on
a busy machine for milliseconds. So a small interpreter beside the worker
(`helper`) starts them, asked over a socket pair by `client`.
"""
