"""The shared module of SightRL: what must be the same in every method. CONTRIBUTING.md tells what each file is for."""
