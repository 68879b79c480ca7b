"""The node's CSI service: volumes with model versions, asked for by the kubelet over gRPC.

Law: the only room that speaks CSI and mounts; imported with `--csi` only. It reads the store and takes leases there,
and changes nothing in it. What a pod may see is decided before it is mounted; a mount is whole and read-only or absent.
"""
