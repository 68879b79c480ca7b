"""The platform: a CPU."""


class CpuPlatform:
    device_type = "cpu"

    def is_cuda(self) -> bool:
        return False


current_platform = CpuPlatform()
