use std::io;
use std::path::Path;

/// Why a load or a sandbox could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused something.
    #[error("{action}: {source}")]
    Io {
        /// What was tried, and on what.
        action: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// An argument cannot be served.
    #[error("{0}")]
    Argument(String),
    /// A program that was started ended badly.
    #[error("{program}: {reason}")]
    Program {
        /// The program and its arguments.
        program: String,
        /// Its exit status, and what it said.
        reason: String,
    },
}

impl Error {
    /// For `map_err`: names what was tried when the kernel refused.
    pub(crate) fn io<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |source| Self::Io {
            action,
            source: source.into(),
        }
    }

    /// For `map_err`: like [`Error::io`], with the path that was acted on.
    pub(crate) fn at<E: Into<io::Error>>(action: &str, path: &Path) -> impl FnOnce(E) -> Self {
        Self::io(format!("{action} {}", path.display()))
    }

    pub(crate) fn program(program: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Program {
            program: program.into(),
            reason: reason.into(),
        }
    }
}
