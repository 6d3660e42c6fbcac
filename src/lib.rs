//! microglia: recurring housekeeping for Synapse, planned first, guarded, recorded and on time.
//!
//! A job **reads** a homeserver and returns a **plan**, a list of changes as data. A single runner checks the plan against
//! its guards and, unless the run is a dry run, **applies** the changes. It emits one stream of events for the log, the
//! metrics and the progress display, and records each step in the history.
//!
//! # Rooms
//!
//! Each folder of `src` is a room with one job. A room imports only from rooms below it, and no two files need each
//! other: `tests/architecture.rs` fails otherwise, and also on a room that it does not know.
//! A room's facade exports to other crates only what `tests/it` uses; the rest is `pub(crate)`, so that the compiler finds
//! what nobody uses.
//!
//! | room | job |
//! |---|---|
//! | [`cli`] | the command line, one command per file |
//! | [`daemon`] | the composition of the daemon, its signals, and its orderly end |
//! | [`web`] | the HTTP service on TCP and on the control socket: metrics, health, API, status page |
//! | `notify` | reports to Matrix rooms: what is worth a message, sending it, and the decisions of people who react |
//! | [`scheduler`] | when what runs: the state of each job, the agenda, the task that carries out decisions, adopting a configuration |
//! | [`runner`] | one run: read, guard, apply, finish |
//! | [`observe`] | metrics and the log of runs |
//! | [`config`] | the TOML files to settings and jobs, or every error with its location |
//! | [`jobs`] | what a kind is, the table of kinds, and one file per kind |
//! | [`history`] | runs, changes and facts about homeservers, in SQLite or PostgreSQL; the locks of the state directory |
//! | [`plan`] | changes, plans, reports and events, as data |
//! | [`synapse`] | the homeserver's API: reader and writer |
//! | [`mas`] | the Matrix Authentication Service: its token, reader, writer, and the sessions of the program itself |
//! | [`http`] | every request to a homeserver or to MAS: limits, retries, tokens, errors |
//! | [`values`] | values that parse themselves: durations, sizes, globs, schedules, tables of the configuration |
//!
//! A new kind is one file in `src/jobs/`, its line in the table in `src/jobs.rs`, and the name of its action in
//! [`plan::report::Action`]. The configuration, `kinds`, the metrics and the tests over the table take it from there.
//!
//! # Data flow
//!
//! ```text
//! microglia.toml -> config -> settings and jobs            or every error, with its location
//! and what it includes            |
//!                                 |
//!              scheduler::adopt <-+                        keeps unchanged jobs, swaps changed ones, retires the rest
//!                     |
//!    job state, time, event -> state, decisions            one pure function, one watermark per job
//!                     |                                    <- the ticker (tokio-cron-scheduler) and the agenda
//!    runner: read -> guard -> apply -> finish -> report
//!                     |
//!                     +-- events -> log, metrics, progress, event stream
//!                     +-- history -> notifications               read after the fact
//! ```
//!
//! # Invariants
//!
//! Most of them forbid something, and so cannot be seen in the code.
//!
//! 1. Only `http::transport` sends HTTP to a homeserver or to MAS. It holds the token, encodes path segments, limits rate
//!    and concurrency, retries, bounds and decodes responses, and names endpoint templates for the metrics.
//! 2. A job has a `synapse::Reader` and a `mas::Reader`, which can only read. Only the runner creates a `synapse::Writer`
//!    or a `mas::Writer`, and never in a dry run. Only `notify` creates a `synapse::Messenger`, which sends messages. Only `cli` creates a `synapse::Authenticator`, which logs in and out, and
//!    `mas::PersonalSessions` is for the program's own token alone.
//! 3. Within an attempt all reading ends before the first change, except that a change reads its own target again just
//!    before it is applied ([`plan::change::Change::check`]).
//! 4. What a run does reaches the log, the metrics, the progress display and the event stream only as
//!    [`plan::report::Event`]s, which carry the report.
//! 5. Time and the environment come in as values: only [`values::clock::Clock`] reads the time, only `cli` reads the
//!    environment.
//! 6. The history is written as it happens: a row when a run starts, each change before it is sent (with what it will
//!    replace) and after its response, the end when it ends. What cannot be recorded is not done.
//!    Where several processes share the history, `begin_run` and each record of a change before it is sent check in the same
//!    transaction that the lease of the homeserver is still the run's, by holder and term: who has lost it cannot record.
//! 7. One run of a job at a time in a state directory, whatever starts it: each run holds the job's lock. Where a daemon
//!    runs, the command line asks it to run the job. Where several processes share the history, only the holder of the
//!    homeserver's lease runs its jobs, the others ask it to, and an occurrence is claimed by a unique row.
//! 8. A request whose response was lost may still be in progress. Nothing that is not safe to repeat is repeated because of a
//!    timeout: a retry of the run reads and plans again, and what is no longer planned was done.
//! 9. A change that only waits to be sent has done nothing: it is given up when its run has to end, and stays planned. A
//!    change that was sent is waited for.
//! 10. Media calls to a homeserver are made one at a time, and none while a lost call may be in progress, across restarts.
//!     Files that are deleted by their ids are deleted side by side, since each is a call of its own and safe to repeat; no
//!     other run makes media calls meanwhile.
//! 11. Changes of external ids on a homeserver, and of links in its MAS with `keep_last`, are made one at a time, whatever
//!     the limits, across runs and processes: each is read and written under the lock of
//!     [`plan::change::Lane::ExternalIds`]. Where a response was lost, the lock is held for another minute.
//!     Deletions of rooms, and of their history, are requested one at a time, too (`Lane::RoomDeletion`), and each is waited for, but not longer
//!     than until the time limit.
//! 12. Limits belong to the address of a server, not to the name of its homeserver; a MAS has its own, of the same size. Two names for one address share them, and so does a
//!     run that continues while a reload renames its homeserver. Leases belong to addresses, too: no two replicas work on
//!     one, so that limits hold across replicas.
//! 13. Only `scheduler::owner::Owner` changes the state of jobs, and only by carrying out what
//!     `JobState::decide` decides.
//! 14. A run that applies an approved plan changes nothing that the plan did not contain, and claims the plan in the same
//!     transaction that records its start: a plan is applied by one run, and by one more only if that was cut off.
//! 15. No permanent task ends unnoticed: the daemon stops with an error when one does.
//!
//! # Decisions
//!
//! - Accounts are read in portions (`plan::round`). A run moves its job's round forward to the first change that was not
//!   made, so that what was planned and not made is planned again; a refused plan moves nothing. The position is a name:
//!   offsets drift while accounts come and go.
//! - The accounts of `purge-local-media` are read in portions, too, but only the run that reads the last one plans
//!   (`plan::round::Plans`): one call of Synapse deletes by a cut-off for all accounts at once, so that a plan of a portion
//!   would leave uncounted what the call deletes of the others. In exact mode each run plans, because files are deleted one
//!   by one. That takes a request for each, and Synapse ignores protection, quarantine and avatars there, so that the
//!   program checks them itself, once more just before each request.
//!   The cut-off is that of the round's start. Until then each run keeps what it read in a file of the state directory,
//!   not in the history: it may have ten million records. The file is replaced as a whole, and one that is missing,
//!   damaged, or of another round or version, also because another replica took over, starts the round anew.
//!   What was read of an account counts for as long as the media statistics, which each run reads anyway, show the same
//!   files of the account; otherwise it is read again. This notices what lost calls, earlier runs and others deleted, so
//!   that a plan that was cut off continues from the same file. A file that was used since it was read is still planned:
//!   Synapse keeps it, as it compares the last access itself, and it counts as skipped. A file whose protection or
//!   quarantine ended since then is deleted unplanned, as between any plan and its calls. A round of one run saves nothing.
//! - The exact mode of `purge-local-media` judges each file again just before it is deleted, with what was read of it within
//!   the last second: sixteen files are listed with one request, because one for each would take half as long again as the
//!   deletions. What rooms use is known from the plan only: their state takes a request each, and a file that became a
//!   room's avatar since has been accessed, too. It is read anew in each run, because nothing else tells that an avatar
//!   was changed (the number of state events stays the same), and any text in it that names a local file counts.
//! - Tables of the configuration are read key by key (`schema!`), not through serde's derive: each key reports its own
//!   error with its location, and the same definition is what `kinds` prints.
//! - The memory of `delete-rooms` is a fact for each empty room, when it was first seen so and when it was shut down: about
//!   100 bytes each, read at once when a run starts, and deleted when a run no longer finds the room empty. A room is read
//!   only once its memory alone would allow its deletion: one request, and one more for its state where its timeline may
//!   lack some. Synapse's list of tasks shows deletions that were requested before a restart or whose response was lost: a
//!   change finds them by itself, and waits for their end instead of requesting another one.
//! - `protect-media` compares the number of a room's state events, which the list of rooms shows, with that before it last
//!   read the room. Synapse counts pairs of type and state key that are new, and never counts down: a first avatar, a new pack
//!   or a new member adds one, an event that replaces another one does not, and nothing else in any list shows that. Only
//!   rooms that have an avatar or a pack can change in this way, and users with packs; they are read again in turn.
//!   Its memory is one text for each room, with the ids of its files and what is known of each: a row for each file would need
//!   three times as much. A change stores only that a file was protected, which the next plan adds to the texts: changes of
//!   one room are made side by side, and none must overwrite what another one stored. Before a request
//!   is sent, that is stored, too: a file that is found protected after a lost response was protected by this kind.
//! - Who is a person and when they were last there is decided in `jobs::account`, for all kinds. A row of the list only rules
//!   accounts out: whoever may have to be locked or deactivated is read singly, with devices and sessions, twice.
//! - That an account was locked is a fact which is recorded when the lock is sent (`Change::facts`), because a lost response
//!   must not make it somebody else's lock; that its user was told is one only once that is confirmed. Runs that see the account
//!   unlocked, or used, forget it: Synapse knows neither when nor by whom it was locked. Notices have a transaction id of the
//!   account and its last use, which Synapse forgets within an hour; that a user may then be told twice is accepted, because to
//!   find the notice in the user's rooms would take many requests for each.
//! - `purge-history` names the first event that stays, not a time: Synapse would compare that with when it received events.
//!   It reads, and purges, only rooms without users of other servers: to read old messages of others makes Synapse fetch
//!   still older ones from there, in a dry run too, and what was purged comes back in the same way.
//! - A media purge is a [`plan::change::BatchPlan`]: the sizes of its changes are adapted during the run, so that a call takes 5 to 20 s
//!   where the part of its time that does not depend on its size allows that.
//! - Lists of any length are never held as a whole in their JSON form: members of a room are parsed while they arrive, and
//!   the files of a media purge are records in a file without a name in the state directory, of which memory holds the
//!   order.
//! - With `max_requests_per_second = "auto"`, `synapse::auto_rate` alone decides how fast an address is used, for all runs on
//!   it: the halving for slow responses of one run applies to fixed limits only.
//! - Scheduling has one watermark per job: every occurrence up to it was run, skipped or given up. It moves when a run is
//!   recorded as started, when an occurrence is skipped while no run is active, and, for occurrences skipped during a
//!   run, when that run has ended. Every later occurrence counts as missed at the next start.
//! - Every statement of the history runs in a transaction whose end is known, with SQLite and PostgreSQL alike. On
//!   PostgreSQL a transaction that certainly was not committed is tried once more, and where the answer to a commit was
//!   lost, the server is asked what became of it: no statement has to be safe to repeat. Nothing is kept in a session, so
//!   that PgBouncer may hand each transaction to another connection.
//! - A lease counts by the clock of the database alone, and one that expired is never valid again: its next holder, be it
//!   the same, has another term. A replica trusts it for 3 s less than it lasts, by its own monotonic clock from before it
//!   asked. That only spares work: what decides is the check in the transaction.
//! - A replica without the lease lets occurrences pass and remembers nothing (`Now::standby`). With the lease it reads what
//!   the history knows, as at a start.
//!   A lease that another replica should have is left as soon as no run needs it, which under constant work is only the
//!   moment at which a run ends; what was skipped during that run is remembered before the lease is resigned.
//! - What a person requests of a job on a replica without the lease is a row that the holder of the lease takes
//!   (`scheduler::forward`). It is taken once, under the lease, and never after it expired or was withdrawn, so that who
//!   asked knows whether it may have been carried out. The run is followed through its record: replicas need no
//!   connection to each other. While the database cannot be used, a replica starts what is requested itself, as one
//!   alone would: only a dry run gets far without a lease.
//! - A plan that waits for a person is columns of the run that made it: one row tells what was planned, who decided and
//!   which run applied it. A run that applies it plans again, as of the moment of the plan (`RunContext::as_of`), and keeps
//!   what the plan contains by action and target. A media plan has no list of its files: there, the moment alone limits it,
//!   since the last access of a file only moves forward. What decides which changes a job plans is recorded as a hash for
//!   each key (`JobSpec::plan_definition`): with another one, nothing is applied. Planning moves a round only up to its
//!   first change.
//! - Undo works on records, not on changes: a kind makes the inverse of a record ([`jobs::job::Undo`]), and the runner
//!   plans, guards and applies it like any other change. What is in place already is left out.
//! - The files of a configuration are parsed one by one and put together as one table, whose spans count on from file to
//!   file (`config::sources`): everything after that works on one text, and an error still has its own file and line.
//! - Homeservers that trust the same certificates share an HTTP client, and their probes are spread over five minutes:
//!   hundreds of homeservers must not cost everything at the same time.
//! - Under MAS, `remove-external-ids` reads all links in each run, not in rounds: whether a link is the last one of its
//!   account shows only in all of them, and a request returns 1,000. Of the accounts it reads those in the selected states,
//!   or all where `users` or `except_users` name some. Each link is a change of its own, checked again with its account just
//!   before it is deleted; changes of links need no lane, because MAS is one database. With `keep_last` they are made one at a
//!   time (`Lane::ExternalIds`): two links of one account, removed by two jobs, must not each count the other as the one that
//!   remains.
//! - Who is locked, deactivated or admin under MAS is what MAS says (`jobs::mas_accounts`, and `remove-external-ids`): Synapse
//!   repeats what it was told, and knows no admins there. `join-rooms` leaves an account out that either of them has locked.
//! - `join-rooms` reads spaces by their own state: Synapse's hierarchy repeats rooms, does not show those that the server is
//!   not in, and fails on a space without local members. A space without rooms is a problem of the plan, because nothing
//!   else would show that it was emptied. Anybody may write any alias into a room: rooms of spaces are shown with their ids.
//! - MAS ignores parameters that it does not know, so that a misspelt filter lists everything: every list compares its
//!   filters with those that the response repeats in `links.self`. Pages continue after the last id, because `links.next`
//!   leads back in some lists.
//! - The client secret is sent only to `admin_url` and `url`, at MAS's fixed path: its discovery document names public URLs,
//!   which need not be reachable, and is not trusted with the secret.
//! - Under MAS each state directory has a personal session with a device of its own: replicas share the history, which must
//!   contain no secret, but no files, and a token that one of them renews must not end the other's. The device is random
//!   and kept in `tokens/HOMESERVER` before the session exists, so that a session whose response was lost is found again by
//!   its device. Its token, which MAS does not show again, is then replaced. Who shares a state directory shares the token:
//!   a lock beside the file makes one process renew it, and the others read it.
//! - A login that fails late logs out only if it created the device, which it tells by the device's name: a logout ends all
//!   tokens of a device, and a daemon may be using one.
//! - A renewal runs in a task of its own, because a request that is given up in the middle would lose the new token. While
//!   the old token is valid, other requests go on with it.
//! - Synapse remembers for two minutes that MAS refused a token. A token that is refused within two minutes of being issued
//!   is therefore tried once more after that, and renewed only then; one that is refused later is renewed at once. If a
//!   renewed token is refused, too, Synapse has lost the device, which only a new session creates again.
//! - Pages of the status page are typed templates (`web::pages`), and no template turns escaping off: charts are paths of SVG
//!   whose coordinates are computed here. The policy of each page allows no script and no style in it.
//! - A browser follows `web::events_feed`, not the events of runs themselves: they are gathered for a quarter of a second and
//!   made once for all readers, so that neither a run nor another reader waits for one. Who missed something reloads the page.
//! - The page applies the plan of a dry run only if it was started from there, with the definition that the job still has, and
//!   shown. Which definition that was is kept in memory: after a restart another dry run is needed.
//! - The sums on the first page are reused for a hundred times as long as they took to compute (`PageState::totals`), so that
//!   a history of any length costs at most a hundredth of the time.
//! - Notifications are made from the history, not from events: the statement that records the end of a run marks it as
//!   unreported, and whoever removes the mark records the messages in the same transaction. So nothing is lost by a crash or
//!   told twice by replicas, and runs of the command line are told, too.
//! - A message has the id of its transaction before it is sent first. Synapse knows a transaction for a day, and only for the
//!   device that sent it: whoever sends a message again looks for its id in the room before. Only the replica that works on
//!   the homeserver sends there.
//! - The daemon shares the run slots of a homeserver through a semaphore, the command line through locks in the state
//!   directory: only one of them runs jobs at a time.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod history;
pub mod http;
pub mod jobs;
pub mod mas;
pub(crate) mod notify;
pub mod observe;
pub mod plan;
pub mod runner;
pub mod scheduler;
pub mod synapse;
pub mod values;
pub mod web;
