//! Whose API a server has: what its errors look like, and what to do about them.

/// The API of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    Synapse,
    /// The Matrix Authentication Service.
    Mas,
}

impl Api {
    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Synapse => "Synapse",
            Self::Mas => "MAS",
        }
    }

    /// As in the metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Synapse => "synapse",
            Self::Mas => "mas",
        }
    }
}
