"""What stands beside a pod's containers: the gate, and the injector that adds it.

Law: `gate` and `injector` know the contract of the daemon and not each other.
"""
