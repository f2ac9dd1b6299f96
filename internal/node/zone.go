package node

import (
	"context"
	"errors"
	"fmt"
	"time"
	_ "time/tzdata" // for machines without a time zone database

	"github.com/hiqlite/hiqlite/internal/wire"
)

const (
	// SQLite asks for local times of these years only. It maps others to them.
	firstZoneYear, lastZoneYear = 1970, 2038
	// zonePatience bounds the wait of the write that sets the zone for
	// transactions.
	zonePatience = 10 * time.Second
	// zoneRetry is the time between two attempts to set the zone.
	zoneRetry = 100 * time.Millisecond
)

// LoadZone returns a time zone's rules as Go knows them.
func LoadZone(name string) (*wire.Zone, error) {
	if name == "Local" {
		return nil, errors.New("the zone Local differs between machines: name a zone, such as Europe/Berlin")
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

// setZone makes Options.Timezone the cluster's zone, if the cluster has none.
func (n *Node) setZone() {
	defer close(n.zoneDone)
	wanted := n.opts.Timezone
	if wanted == "" {
		return
	}
	zone, err := LoadZone(wanted)
	for err == nil && n.sql.machine.Zone() == "" {
		_, err = n.Write(n.ctx, &wire.Operation{Zone: zone}, zonePatience)
		if errors.Is(err, ErrNoLeader) || errors.Is(err, ErrOutcomeUnknown) || Transient(err) {
			err = nil
			n.sleep(zoneRetry)
		}
		if n.Closed() {
			return
		}
	}
	if has := n.sql.machine.Zone(); err != nil || has != wanted {
		n.opts.Logger.Error("hiqlite: the time zone is not the cluster's: this node serves no SQL", "node", n.opts.ID, "timezone", wanted, "cluster", has, "error", err)
	}
}

// WaitZone waits until Options.Timezone, if there is one, is the cluster's zone.
// It fails if the cluster has another one.
func (n *Node) WaitZone(ctx context.Context) error {
	wanted := n.opts.Timezone
	if wanted == "" || n.sql.machine.Zone() == wanted {
		return nil
	}
	ctx, cancel := n.Within(ctx)
	defer cancel()
	select {
	case <-n.zoneDone:
	case <-ctx.Done():
		return fmt.Errorf("%w: the time zone %s is not known to the cluster yet: %w", ErrNoLeader, wanted, ctx.Err())
	case <-n.ctx.Done():
		return ErrClosed
	}
	switch has := n.sql.machine.Zone(); has {
	case wanted:
		return nil
	case "":
		return fmt.Errorf("hiqlite: the time zone %s could not be made the cluster's: see the log", wanted)
	default:
		return fmt.Errorf("hiqlite: this node's timezone is %s, the cluster's is %s: configure the cluster's on all nodes, or none", wanted, has)
	}
}
