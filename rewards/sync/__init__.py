"""Lip-sync scores: the SyncNet network, its published metrics, a zero-lag reward, and the crops they look
at."""
