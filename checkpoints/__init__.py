"""What a stage leaves on disk: sealed directories of results, checkpoints and caches (`store`), the hashes of their contents
(`fingerprint`), and the one error that is a user's to fix (`errors`).
"""
