"""The optional C extension; everything else is in pyproject.toml.

``optional`` makes an installation without a C compiler succeed: the library then runs on its
Python fallback. The cffi glue is committed, so building needs no cffi.
"""

from __future__ import annotations

import sysconfig

from setuptools import Extension, setup

# The limited API (one binary for every Python from 3.11 on) does not exist without the GIL.
HAS_LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    ext_modules=[
        Extension(
            "orchestra._native._orchestra",
            sources=[
                "src/orchestra/_native/_glue.c",
                "src/orchestra/_native/objects.c",
                "csrc/executor.c",
            ],
            depends=[
                "csrc/chase_lev.h",
                "csrc/eventcount.h",
                "csrc/executor.h",
                "src/orchestra/_native/_docs.h",
            ],
            include_dirs=["csrc", "src/orchestra/_native"],
            define_macros=[
                ("Py_LIMITED_API", "0x030b0000")
                if HAS_LIMITED_API
                else ("_CFFI_NO_LIMITED_API", "1")
            ],
            extra_compile_args=["-std=gnu11", "-pthread"],
            extra_link_args=["-pthread"],
            py_limited_api=HAS_LIMITED_API,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if HAS_LIMITED_API else {},
)
