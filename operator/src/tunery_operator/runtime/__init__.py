"""Watching: one reflector for each resource keeps the cache equal to the cluster, whatever happens on the way.

Wire ──► Reflector ──► sink ──► Cache
(HTTP)   list, watch,    │
         own policy      └──► keys: of children to the queue, of our own objects to Kopf through Feed
"""
