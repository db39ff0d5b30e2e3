"""Provide what decides when an object is reconciled.

ListWatchClient ──► Reflector ──► event handler ──► Cache
(HTTP)              list, watch         └──► keys ──► LeaderGate ──► WorkQueue ──► reconcile
                                                      (keys of our own objects through Kopf)
"""
