"""Folders that are not named like the packages they hold; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["sglang_dspark*", "simulator*"]),
        *find_packages("kernels"),
        "dspark_profiles",
    ],
    # `kernels` and `profiles` are no import names: the first would shadow a dependency of sglang.
    package_dir={"dspark_kernels": "kernels/dspark_kernels", "dspark_profiles": "profiles"},
    package_data={
        "dspark_profiles": ["*.json"],
        "sglang_dspark": ["py.typed"],
        "sglang_dspark.cost.estimate": ["accuracy.json"],
        "simulator": ["examples/*", "py.typed"],
        "simulator.blocks": ["published/*.json"],
        "simulator.results": ["validation.json"],
        "simulator.report": ["assets/*"],
    },
)
