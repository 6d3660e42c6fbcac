//! One file per kind: what it must do, and what it must leave alone.

mod deactivate_accounts;
mod deactivated_for;
mod delete_event_reports;
mod delete_registration_tokens;
mod delete_rooms;
mod delete_stale_devices;
mod delete_user_reports;
pub mod in_process;
mod join_rooms;
mod lock_inactive_accounts;
mod protect_media;
mod purge_history;
mod purge_local_media;
mod purge_local_media_exact;
mod purge_remote_media;
mod purge_rounds;
mod remove_external_ids;
mod remove_upstream_links;
mod request;
mod undo;

use crate::fake::{CLIENT_ID, CLIENT_SECRET, Fake};
use crate::program::Program;

/// A homeserver whose accounts are in MAS.
pub struct UnderMas {
    pub fake: Fake,
    public: Fake,
    /// With the Admin API.
    pub internal: Fake,
}

impl UnderMas {
    pub fn start() -> Self {
        let fake = Fake::start();
        let (public, internal) = fake.mas();
        fake.world(|world| world.auth_service.user("microglia"));
        Self { fake, public, internal }
    }

    /// A config with this homeserver, `main`, followed by `rest`.
    pub fn program(&self, rest: &str) -> Program {
        let (url, public, internal) = (self.fake.url(), self.public.url(), self.internal.url());
        let program = Program::with_config(&format!(
            "[daemon]\nstate_dir = \"state\"\n\n[homeservers.main]\nurl = \"{url}\"\nmax_requests_per_second = \"unlimited\"\n\n[homeservers.main.mas]\nurl = \"{public}\"\nadmin_url = \"{internal}\"\nclient_id = \"{CLIENT_ID}\"\nclient_secret_file = \"mas-client-secret\"\naccount = \"microglia\"\n\n{rest}"
        ));
        program.write("mas-client-secret", CLIENT_SECRET);
        program
    }
}
