//! Where a service's containers may be, beyond the labels of nodes: what of it a spec must satisfy.

use super::validate::SpecError;
use crate::model::{MAX_TAINTS, ServiceSpec};

impl ServiceSpec {
    /// Checks what its spec says about places.
    pub(super) fn check_placement(&self) -> Result<(), SpecError> {
        self.check_tolerations()
    }

    fn check_tolerations(&self) -> Result<(), SpecError> {
        const FIELD: &str = "/tolerations";
        let count = self.tolerations.len();
        if count > MAX_TAINTS {
            return Err(SpecError::new(FIELD, format!("{count}; at most {MAX_TAINTS}")));
        }
        match twice(&self.tolerations) {
            Some(twice) => Err(SpecError::new(FIELD, format!("{twice} is named twice"))),
            None => Ok(()),
        }
    }
}

/// The first that is there twice.
fn twice<T: PartialEq>(list: &[T]) -> Option<&T> {
    list.iter()
        .enumerate()
        .find_map(|(at, one)| list[..at].contains(one).then_some(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ServiceSpec {
        ServiceSpec::new("web".parse().unwrap(), "nginx".parse().unwrap())
    }

    #[test]
    fn what_is_wrong_names_its_field() {
        let mut one = spec();
        one.tolerations = vec!["gpu".parse().unwrap(), "gpu=a".parse().unwrap()];
        assert_eq!(one.check_placement(), Ok(()));
        one.tolerations.push("gpu".parse().unwrap());
        let error = one.check_placement().unwrap_err();
        assert_eq!(
            (error.field, error.why.as_str()),
            ("/tolerations", "gpu is named twice")
        );
        let text = r#"{"name":"web","image":"nginx","tolerations":["gpu:NoSchedule"]}"#;
        let error = serde_json::from_str::<ServiceSpec>(text).unwrap_err();
        assert!(error.to_string().contains("write no-schedule"), "{error}");
    }
}
