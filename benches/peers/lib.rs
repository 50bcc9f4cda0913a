//! Empty: cargo asks a package for a target, and this one exists for the sources of its dependencies.
