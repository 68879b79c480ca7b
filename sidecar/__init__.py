"""The gate beside a pod's containers, its postStart hook, and the injector that adds them.

Law: `gate`, `poststart` and `injector` know the contract of the daemon and not each other.
"""
