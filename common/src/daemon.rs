//! What both daemons owe whoever runs them: logs in the form that suits where they go, and signs of life.
//!
//! Behind a feature, since the command line carries neither.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use systemd_journal_logger::{JournalLog, connected_to_journal};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt};

/// How a daemon logs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// With fields of their own where systemd's journal takes the output, else as text.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why a daemon can't log as it was told.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter makes no sense.
    #[error("log_level {0:?} is no filter; write a level as \"info\", or \"info,berth_agent::link=debug\"")]
    Filter(String, #[source] tracing_subscriber::filter::ParseError),
}

/// Starts logging to standard error, or to the journal that takes it.
///
/// # Errors
/// When `level` is no filter.
pub fn log(level: &str, format: LogFormat) -> Result<(), LogError> {
    let filter: EnvFilter = level.parse().map_err(|e| LogError::Filter(level.to_owned(), e))?;
    let registry = tracing_subscriber::registry().with(filter);
    let journal = (format == LogFormat::Auto && connected_to_journal())
        .then(JournalLog::new)
        .and_then(Result::ok);
    if let Some(journal) = journal {
        registry.with(Journal(journal)).init();
        return Ok(());
    }
    let plain = fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Json => registry.with(plain.json()).init(),
        LogFormat::Auto | LogFormat::Text => registry
            .with(plain.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())))
            .init(),
    }
    Ok(())
}

/// Sends events to systemd's journal: the text as people read it, and each field again under its own name, `BERTH_NODE`,
/// `BERTH_ERROR`, so that `journalctl BERTH_NODE=…` finds it.
struct Journal(JournalLog);

#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
    named: Vec<(String, String)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
            return;
        }
        let _ = write!(self.rest, " {}={text}", field.name());
        self.named.push((format!("BERTH_{}", field.name()), text));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
            return;
        }
        let _ = write!(self.rest, " {}={value:?}", field.name());
        self.named
            .push((format!("BERTH_{}", field.name()), value.to_owned()));
    }
}

impl<S: tracing::Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let about = event.metadata();
        let level = match *about.level() {
            tracing::Level::ERROR => log::Level::Error,
            tracing::Level::WARN => log::Level::Warn,
            tracing::Level::INFO => log::Level::Info,
            tracing::Level::DEBUG => log::Level::Debug,
            tracing::Level::TRACE => log::Level::Trace,
        };
        // Nobody is left to tell when the journal can't be reached.
        let _ = self.0.journal_send(
            &log::Record::builder()
                .args(format_args!("{}{}", fields.message, fields.rest))
                .level(level)
                .target(about.target())
                .module_path(about.module_path())
                .file(about.file())
                .line(about.line())
                .key_values(&fields.named.as_slice())
                .build(),
        );
    }
}

/// The folder of a daemon's programs: the configured one or, if that is empty, the folder of the running program.
pub fn program_dir(configured: &Path) -> PathBuf {
    if !configured.as_os_str().is_empty() {
        return configured.to_owned();
    }
    let own = std::env::current_exe().ok();
    own.and_then(|exe| exe.parent().map(Path::to_owned))
        .unwrap_or_else(|| "/usr/local/bin".into())
}

/// Tells the service manager, if there is one.
fn tell(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager can't be told");
    }
}

/// Everything is set up.
pub fn tell_ready() {
    tell(sd_notify::NotifyState::Ready);
}

/// The end has begun.
pub fn tell_stopping() {
    tell(sd_notify::NotifyState::Stopping);
}

/// Gives the service manager a sign of life as often as it wants one, as long as `silent` (how long the daemon's main loop
/// has not been round) stays below the time it allows. Returns at once where none is wanted.
pub async fn watchdog(silent: impl Fn() -> Duration) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    loop {
        let silence = silent();
        if silence < limit {
            tell(sd_notify::NotifyState::Watchdog);
        } else {
            tracing::error!(
                seconds = silence.as_secs(),
                "the main loop is stuck; the service manager will start anew"
            );
        }
        tokio::time::sleep(limit / 3).await;
    }
}
