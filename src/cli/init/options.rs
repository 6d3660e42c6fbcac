//! The options of `microglia init`.

use std::path::PathBuf;

use super::super::failure::Failure;
use super::super::session::LoginOptions;
use super::draft::KINDS;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    microglia init\n      \
        asks on a terminal\n  \
    microglia init --url http://127.0.0.1:8008 --user microglia --job purge-local-media <password\n      \
        reads the password from a file\n  \
    microglia init --print --url http://127.0.0.1:8008 --job purge-local-media --schedule 'every sunday at 4:00'\n      \
        prints a configuration")]
pub(in super::super) struct Options {
    /// The homeserver: Synapse's own listener rather than a public proxy.
    #[arg(long)]
    pub(super) url: Option<String>,
    #[command(flatten)]
    pub(super) login: LoginOptions,
    /// A file that contains the access token of a server admin; copied, unless it is beside the configuration.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["user", "sso"])]
    pub(super) token_file: Option<PathBuf>,
    /// The Matrix Authentication Service (MAS) that manages the accounts: microglia will issue its own token there.
    #[arg(long, value_name = "URL", conflicts_with_all = ["user", "sso", "token_file"])]
    pub(super) mas: Option<String>,
    /// PEM certificates to trust in addition to those of the system.
    #[arg(long, value_name = "FILE")]
    pub(super) ca_file: Option<PathBuf>,
    /// A kind of job to set up; may be repeated.
    #[arg(long = "job", value_name = "KIND", value_parser = clap::builder::PossibleValuesParser::new(KINDS))]
    pub(super) jobs: Vec<String>,
    /// For purge-local-media: the age of the files to delete [default: 180d].
    #[arg(long, value_name = "DURATION")]
    pub(super) older_than: Option<String>,
    /// For join-rooms: a room that users are joined to, as alias or id; may be repeated.
    #[arg(long = "room", value_name = "ROOM")]
    pub(super) rooms: Vec<String>,
    /// For remove-external-ids: a provider of the identities to remove; may be repeated.
    #[arg(long = "provider", value_name = "NAME")]
    pub(super) providers: Vec<String>,
    /// When the jobs run, in words or cron [default: "every night at 03:30"].
    #[arg(long, value_name = "WHEN")]
    pub(super) schedule: Option<String>,
    /// The IANA time zone of the schedule [default: that of this machine].
    #[arg(long, value_name = "ZONE")]
    pub(super) timezone: Option<String>,
    /// Print the configuration to stdout; write no file, and log in nowhere.
    #[arg(long)]
    pub(super) print: bool,
}

impl Options {
    /// Without a terminal, everything that has no default must be an option.
    pub(super) fn check(&self, interactive: bool) -> Result<(), Failure> {
        let mut missing = Vec::new();
        let mut require = |is_given: bool, option: &'static str| {
            if !is_given {
                missing.push(option);
            }
        };
        require(self.url.is_some(), "--url URL");
        let has_login = self.login.user.is_some() || self.login.sso;
        let token = self.print || has_login || self.token_file.is_some() || self.mas.is_some();
        let options =
            "--user NAME (with the password on stdin), --token-file FILE or, under MAS, --mas URL";
        require(token, options);
        require(!self.jobs.is_empty(), "--job KIND");
        let has = |kind: &str| self.jobs.iter().any(|job| job == kind);
        require(!has("join-rooms") || !self.rooms.is_empty(), "--room ROOM");
        require(!has("remove-external-ids") || !self.providers.is_empty(), "--provider NAME");
        if interactive || missing.is_empty() {
            return Ok(());
        }
        Err(Failure::Usage(format!(
            "there is no terminal to ask on, so these options are required as well: {}",
            missing.join(", ")
        )))
    }
}
