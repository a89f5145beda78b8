"""Lip-sync rewards: the SyncNet network, its published metrics, a zero-lag reward, and input crops."""
