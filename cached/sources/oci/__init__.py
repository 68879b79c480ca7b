"""OCI registries: ModelPack and ORAS artifacts, and images with a model's files in them.

Law: a registry's answer counts only as far as its digest proves it. A registry's credentials go to the registry, and
to the token server that it names, and nowhere else.
"""
