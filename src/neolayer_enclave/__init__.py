"""The measured code: it alone holds the sealing key, reads secrets and signs."""
