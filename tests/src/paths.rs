//! Where the built program and the project's files are.

use std::path::{Path, PathBuf};

/// The project's folder.
pub fn project() -> &'static Path {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.parent().unwrap_or(crate_dir)
}

/// The program: `$PILOTHOUSE`, else what was built beside this test.
pub fn pilothouse() -> PathBuf {
    if let Some(path) = std::env::var_os("PILOTHOUSE") {
        return path.into();
    }
    // target/<profile>/deps/<test>
    let test = std::env::current_exe().unwrap_or_default();
    let profile = test.parent().and_then(Path::parent).unwrap_or(Path::new("target/debug"));
    let program = profile.join("pilothouse");
    assert!(program.exists(), "{} is not built: run scripts/test, or cargo build first", program.display());
    program
}

/// A folder for what tests leave to look at: logs, and notes of what was skipped.
pub fn output() -> PathBuf {
    let dir =
        std::env::var_os("PILOTHOUSE_TEST_DIR").map_or_else(|| project().join("target/tests"), PathBuf::from);
    let _ = std::fs::create_dir_all(&dir);
    dir
}

/// An example manifest in `config/examples`.
pub fn example(name: &str) -> PathBuf {
    let path = project().join("config/examples").join(name);
    assert!(path.exists(), "no example {name}");
    path
}

/// Notes that a test cannot run here, and why; scripts/test counts it as skipped.
pub fn skip(test: &str, why: &str) {
    eprintln!("skipped: {why}");
    let _ = std::fs::write(output().join(format!("skipped-{}", test.replace("::", "."))), format!("{why}\n"));
}
