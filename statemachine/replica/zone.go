package replica

import (
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// The time zone of 'localtime' and 'utc' is replicated state, with all its rules: by name
// alone, each machine would use the rules of its own zone data. An operation sets the zone
// once. From then on all replicas and readers use it, whatever their nodes' configuration
// says.

// setZone makes zone that of the cluster, unless the cluster has one.
func (r *SQL) setZone(zone *wire.Zone) *wire.Error {
	if zone == nil {
		return nil
	}
	if has := r.zone.Load(); has != nil && has.Name != zone.Name {
		return sqlite.ArgumentError("it was set by the first node that was told one; configure that on all nodes, or none",
			"the cluster's time zone is %s, not %s", has.Name, zone.Name)
	} else if has == nil {
		r.zone.Store(zone)
	}
	return nil
}

// Zone returns the name of the cluster's time zone; "": none was set, it is UTC.
func (r *SQL) Zone() string {
	if zone := r.zone.Load(); zone != nil {
		return zone.Name
	}
	return ""
}
