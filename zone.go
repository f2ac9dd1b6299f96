package hiqlite

import (
	"context"
	"errors"
	"fmt"
	"time"
	_ "time/tzdata" // zones are known on machines without zone data, too

	"github.com/hiqlite/hiqlite/internal/wire"
)

// The years for which SQLite asks for local times: others are mapped to them.
const firstZoneYear, lastZoneYear = 1970, 2038

// zoneOf makes a zone's rules for SQLite of what Go knows of it.
func zoneOf(name string) (*wire.Zone, error) {
	if name == "Local" {
		return nil, errors.New("the zone Local is another one on each machine: name it, as in Europe/Berlin")
	}
	location, err := time.LoadLocation(name)
	if err != nil {
		return nil, err
	}
	zone := &wire.Zone{Name: location.String()}
	end := time.Date(lastZoneYear+1, 1, 1, 0, 0, 0, 0, time.UTC)
	for at := time.Date(firstZoneYear-1, 1, 1, 0, 0, 0, 0, time.UTC).In(location); at.Before(end); {
		_, seconds := at.Zone()
		zone.Offsets = append(zone.Offsets, wire.Offset{From: at.Unix(), Seconds: int64(seconds)})
		_, next := at.ZoneBounds()
		if next.IsZero() {
			break
		}
		at = next
	}
	return zone, nil
}

// setZone has the node's zone made the cluster's, if the cluster has none.
func (n *Node) setZone() {
	defer close(n.zoned)
	if n.cfg.Timezone == "" {
		return
	}
	zone, err := zoneOf(n.cfg.Timezone)
	for err == nil && n.replica.Zone() == "" {
		_, err = n.write(n.ctx, &wire.Operation{Zone: zone}, DefaultBusyTimeout)
		if errors.Is(err, ErrNoLeader) || errors.Is(err, ErrOutcomeUnknown) || repeatable(err) {
			err = nil
			n.sleep(migrateAgain)
		}
		if n.ctx.Err() != nil {
			return
		}
	}
	if has := n.replica.Zone(); err != nil || has != n.cfg.Timezone {
		n.cfg.Logger.Error("hiqlite: the time zone is not the cluster's: this node answers no SQL", "node", n.cfg.NodeID, "timezone", n.cfg.Timezone, "cluster", has, "error", err)
	}
}

// inZone waits until the node's zone, if it was told one, is the cluster's. It
// fails if that has another one.
func (n *Node) inZone(ctx context.Context) error {
	wanted := n.cfg.Timezone
	if wanted == "" || n.replica.Zone() == wanted {
		return nil
	}
	ctx, cancel := n.within(ctx)
	defer cancel()
	select {
	case <-n.zoned:
	case <-ctx.Done():
		return fmt.Errorf("%w: the time zone %s is not known to the cluster yet: %w", ErrNoLeader, wanted, ctx.Err())
	case <-n.ctx.Done():
		return ErrClosed
	}
	switch has := n.replica.Zone(); has {
	case wanted:
		return nil
	case "":
		return fmt.Errorf("hiqlite: the time zone %s could not be made the cluster's: see the log", wanted)
	default:
		return fmt.Errorf("hiqlite: this node's timezone is %s, the cluster's is %s: configure that on all nodes, or none", wanted, has)
	}
}
