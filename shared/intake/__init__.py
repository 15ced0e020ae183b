"""What strangers send or name: JSON, images, addresses and paths come in unchecked; they go out as models, as
decoded, fetched or kept images, or are refused.
"""
