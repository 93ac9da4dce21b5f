"""How many captions of a corpus mention each concept, and the frequency buckets that follow.

Import its modules directly: none imports PyTorch, and buckets are assigned without the matcher of captions.
"""
