"""The gate beside a pod's containers, and the injector that adds it.

Law: `gate` and `injector` know the contract of the daemon and not each other.
"""
