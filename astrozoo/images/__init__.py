"""What the commands do for posteriors of single images: ``denoise`` and ``mri``."""
