//! The cluster as it is at one scrape, and how that becomes series.

use std::fmt;

use berth_common::model::NodeState;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::{nodes, services};

/// What a scrape tells of the cluster's present state. It is a copy: while it is written out, nothing is held.
#[derive(Debug, Clone, Default)]
pub struct Present {
    /// All nodes.
    pub nodes: Vec<nodes::Reading>,
    /// All services.
    pub services: Vec<services::Reading>,
    /// Agents connected.
    pub link_sessions: usize,
    /// Containers, those being removed included.
    pub containers: usize,
    /// Containers that wait for a node.
    pub waiting: usize,
}

const STATES: [(NodeState, &str); 3] = [
    (NodeState::Ready, "ready"),
    (NodeState::Silent, "silent"),
    (NodeState::Lost, "lost"),
];

impl Collector for Present {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let gauge = MetricType::Gauge;
        for (name, help, value) in [
            ("link_sessions", "Agents connected", self.link_sessions),
            (
                "containers",
                "Containers, those being removed included",
                self.containers,
            ),
            (
                "containers_waiting",
                "Containers that wait for a node",
                self.waiting,
            ),
        ] {
            encoder
                .encode_descriptor(name, help, None, gauge)?
                .encode_gauge(&(value as f64))?;
        }
        encoder
            .encode_descriptor("build", "The brain's version", None, MetricType::Info)?
            .encode_info(&[("version", berth_common::VERSION)])?;
        self.encode_nodes(&mut encoder)?;
        for series in &services::SERIES {
            let mut metric = encoder.encode_descriptor(series.name, series.help, None, gauge)?;
            for service in &self.services {
                let labels = [
                    ("tenant", service.tenant.as_str()),
                    ("service", service.service.as_str()),
                ];
                let value = (series.value)(service);
                metric.encode_family(&labels)?.encode_gauge(&f64::from(value))?;
            }
        }
        Ok(())
    }
}

impl Present {
    fn encode_nodes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "1 for the state that the node is in";
        let mut metric = encoder.encode_descriptor("node_state", help, None, MetricType::Gauge)?;
        for node in &self.nodes {
            for (state, word) in STATES {
                let labels = [("node", node.name.as_str()), ("state", word)];
                let value = f64::from(u8::from(node.state == state));
                metric.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        let help = "The pool that the node is in; 1";
        let mut metric = encoder.encode_descriptor("node", help, None, MetricType::Info)?;
        for node in &self.nodes {
            let labels = [("node", node.name.as_str()), ("pool", node.pool.as_str())];
            metric.encode_info(&labels)?;
        }
        for series in &nodes::SERIES {
            let unit = series.measure.unit();
            let mut metric =
                encoder.encode_descriptor(series.name, series.help, unit.as_ref(), MetricType::Gauge)?;
            for node in &self.nodes {
                if let Some(value) = (series.value)(node) {
                    let labels = [("node", node.name.as_str())];
                    metric.encode_family(&labels)?.encode_gauge(&value)?;
                }
            }
        }
        Ok(())
    }
}
