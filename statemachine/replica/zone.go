package replica

import (
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// What 'localtime' and 'utc' mean is replicated state, rules and all: a zone's
// name alone would mean what each machine's zone data say. An operation sets it
// once; from there on replicas and reads, of nodes that were told a zone and of
// those that were not, have the same.

// setZone makes zone the cluster's, unless it has one.
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
