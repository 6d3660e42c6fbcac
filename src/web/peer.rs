//! The other end of a connection.

use std::net::SocketAddr;

/// Who is connected, as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Tcp(SocketAddr),
    /// A process that may open the control socket; without a user id where the kernel does not report one.
    Local {
        uid: Option<u32>,
    },
}

impl Peer {
    /// Reads well after "cancelled by": `root (uid 0)`, `192.0.2.1 (HTTP API)`.
    pub(super) async fn name(self) -> String {
        let uid = match self {
            Self::Tcp(address) => return format!("{} (HTTP API)", address.ip()),
            Self::Local { uid: None } => return "an unknown user".to_owned(),
            Self::Local { uid: Some(uid) } => uid,
        };
        match tokio::fs::read_to_string("/etc/passwd").await.ok().and_then(|file| user(&file, uid))
        {
            Some(user) => format!("{user} (uid {uid})"),
            None => format!("uid {uid}"),
        }
    }
}

/// Finds local accounts only: a directory service may be slow to respond.
fn user(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|account| {
        let mut fields = account.split(':');
        let user = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| user.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_account_is_found_by_its_user_id() {
        let passwd =
            "root:x:0:0:root:/root:/bin/bash\n# a comment\nops:x:1000:1000::/home/ops:/bin/sh\n";
        let found = [0, 1000, 1001].map(|uid| user(passwd, uid));
        assert_eq!(found, [Some("root".to_owned()), Some("ops".to_owned()), None]);
    }
}
