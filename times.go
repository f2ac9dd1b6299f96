package hiqlite

import (
	"fmt"
	"strings"
	"time"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// Times are texts in SQLite. By default they are written in UTC and in one form:
// the order of these texts is the order of the times, equal times are equal
// texts, and SQLite's date functions read them. A fraction without its last
// zeros keeps the order, because '+' is less than '.' and than every digit.
const (
	defaultTimeLayout = "2006-01-02 15:04:05.999999999-07:00"
	stringTimeLayout  = "2006-01-02 15:04:05.999999999 -0700 MST" // time.Time.String's
)

// timeFormats are the other forms by their names, which are modernc.org/sqlite's
// but for "string": that is its default.
var timeFormats = map[string]string{
	"sqlite":              defaultTimeLayout,
	"datetime":            "2006-01-02 15:04:05",
	"string":              "",
	"string_no_monotonic": stringTimeLayout,
}

// timeValue is the argument for a time.
func (c *ConnConfig) timeValue(t time.Time) (wire.Value, error) {
	switch c.TimeIntegerFormat {
	case "unix":
		return wire.IntegerValue(t.Unix()), nil
	case "unix_milli":
		return wire.IntegerValue(t.UnixMilli()), nil
	case "unix_micro":
		return wire.IntegerValue(t.UnixMicro()), nil
	case "unix_nano":
		return wire.IntegerValue(t.UnixNano()), nil
	}
	switch c.TimeFormat {
	case "":
		t = t.UTC()
		if year := t.Year(); year < 0 || year > 9999 {
			return wire.Value{}, misuse("SQLite's date functions know the years 0 to 9999, in UTC; _time_format=string writes others, which do not sort", "the time %s is of the year %d", t.Format(stringTimeLayout), year)
		}
		return wire.TextValue(t.Format(defaultTimeLayout)), nil
	case "string":
		return wire.TextValue(c.in(t).String()), nil
	}
	return wire.TextValue(c.in(t).Format(timeFormats[c.TimeFormat])), nil
}

func (c *ConnConfig) in(t time.Time) time.Time {
	if c.Location == nil {
		return t
	}
	return t.In(c.Location)
}

// holdsTimes reports that a declared type, in upper case, is one of times: DATE,
// DATETIME, TIMESTAMP or TIMESTAMPTZ, with a precision or not, WITH TIME ZONE or
// WITHOUT.
func holdsTimes(declType string) bool {
	if open := strings.IndexByte(declType, '('); open >= 0 {
		rest := declType[open:]
		shut := strings.IndexByte(rest, ')')
		if shut < 0 {
			return false
		}
		declType = declType[:open] + " " + rest[shut+1:]
	}
	name, rest, _ := strings.Cut(strings.Join(strings.Fields(declType), " "), " ")
	switch rest {
	case "", "WITH TIME ZONE", "WITHOUT TIME ZONE", "WITH LOCAL TIME ZONE":
	default:
		return false
	}
	switch name {
	case "DATE", "DATETIME", "TIMESTAMP", "TIMESTAMPTZ":
		return true
	}
	return false
}

// parseTime reads a time in any form that SQLite, this or another driver has
// written. What has no zone is in the connection's, or UTC. A guess may be at a
// text that is none of times.
func (c *ConnConfig) parseTime(s string, guess bool) (time.Time, bool) {
	if !guess {
		s = strings.TrimSpace(s)
	}
	p := timeParser{rest: s, guess: guess}
	zone := c.Location
	if zone == nil {
		zone = time.UTC
	}
	t, ok := p.parse(zone)
	if !ok {
		return time.Time{}, false
	}
	return c.in(t), true
}

// A timeParser reads a time from the front of a text.
type timeParser struct {
	rest   string
	guess  bool // it may be no time: years have four digits, zones one word
	named  bool // the offset has a zone's name after it, as time.Time.String writes it
	failed bool
}

// parse reads YYYY-MM-DD, with a time of day behind it or not, with a zone behind
// that or not, and as time.Time.String has it with the zone's name and the
// reading of the monotonic clock.
func (p *timeParser) parse(zone *time.Location) (time.Time, bool) {
	year, month, day := p.date()
	var hour, minute, second, nanosecond int
	if p.any(" Tt") && p.rest != "" && !p.failed {
		hour, minute, second, nanosecond = p.clock()
	}
	if p.failed || month < 1 || month > 12 || day < 1 || hour > 23 || minute > 59 || second > 59 {
		return time.Time{}, false
	}
	offset, name, given := p.zone()
	if p.failed || p.rest != "" {
		return time.Time{}, false
	}
	// Only time.Time.String writes other years. Without this rule a result of
	// timediff, as -0023-11-30 12:00:00.000, would be taken for a time.
	if (year < 0 || year > 9999) && !p.named {
		return time.Time{}, false
	}
	if given {
		zone = time.UTC
	}
	t := time.Date(year, time.Month(month), day, hour, minute, second, nanosecond, zone)
	if !given {
		// A day that the month has not, not an hour that the zone skips.
		return t, time.Date(year, time.Month(month), day, 0, 0, 0, 0, time.UTC).Day() == day
	}
	if t.Day() != day {
		return time.Time{}, false
	}
	return zoned(t.Add(-time.Duration(offset)*time.Second), offset, name), true
}

// zoned shows an instant in the zone that was written with it: as the process's
// own where that is it, as time.Parse does.
func zoned(t time.Time, offset int, name string) time.Time {
	if offset == 0 && (name == "" || name == "UTC") {
		return t
	}
	local := t.Local()
	if abbreviation, own := local.Zone(); own == offset && (name == "" || name == abbreviation) {
		return local
	}
	return t.In(time.FixedZone(name, offset))
}

func (p *timeParser) date() (year, month, day int) {
	most := 9
	if p.guess {
		most = 4
	}
	negative := !p.guess && p.any("-")
	year = p.digits(4, most)
	if negative {
		year = -year
	}
	p.must("-")
	month = p.digits(2, 2)
	p.must("-")
	return year, month, p.digits(2, 2)
}

// clock reads HH:MM, and :SS and a fraction if they are there.
func (p *timeParser) clock() (hour, minute, second, nanosecond int) {
	hour = p.digits(1, 2)
	p.must(":")
	minute = p.digits(2, 2)
	if !p.any(":") {
		return hour, minute, 0, 0
	}
	second = p.digits(2, 2)
	if !p.any(".,") {
		return hour, minute, second, 0
	}
	unit := int(time.Second)
	for n := 0; ; n++ {
		if p.rest == "" || p.rest[0] < '0' || p.rest[0] > '9' {
			p.failed = p.failed || n == 0
			return hour, minute, second, nanosecond
		}
		unit /= 10
		nanosecond += int(p.rest[0]-'0') * unit
		p.rest = p.rest[1:]
	}
}

// zone reads Z, UTC, GMT or an offset, behind a space or not; and behind the
// offset what time.Time.String adds.
func (p *timeParser) zone() (offset int, name string, given bool) {
	p.any(" ")
	switch p.rest {
	case "":
		return 0, "", false
	case "Z", "z", "UTC", "GMT":
		p.rest = ""
		return 0, "", true
	}
	sign := 1
	if p.any("-") {
		sign = -1
	} else {
		p.must("+")
	}
	hours, minutes := p.digits(2, 2), 0
	if p.any(":") || p.rest != "" && p.rest[0] != ' ' {
		minutes = p.digits(2, 2)
	}
	p.failed = p.failed || hours > 23 || minutes > 59
	if p.any(" ") {
		p.named = true
		name = p.rest
		if at := strings.LastIndex(" "+name, " m="); at >= 0 {
			name = strings.TrimSpace(name[:max(0, at-1)])
		}
		p.failed = p.failed || p.guess && strings.Contains(name, " ")
		p.rest = ""
		if strings.Trim(name, "+-0123456789") == "" {
			name = "" // the offset again, for a zone without a name
		}
	}
	return sign * (hours*3600 + minutes*60), name, true
}

// digits reads a number of so many digits.
func (p *timeParser) digits(least, most int) (n int) {
	length := 0
	for length < len(p.rest) && length < most && '0' <= p.rest[length] && p.rest[length] <= '9' {
		n = n*10 + int(p.rest[length]-'0')
		length++
	}
	p.failed = p.failed || length < least
	p.rest = p.rest[length:]
	return n
}

// any skips one of these characters, if it is next.
func (p *timeParser) any(of string) bool {
	if p.rest == "" || strings.IndexByte(of, p.rest[0]) < 0 {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

func (p *timeParser) must(one string) { p.failed = !p.any(one) || p.failed }

func unknownTimeFormat(name string) error {
	return fmt.Errorf("hiqlite: unknown time format %q: use sqlite, datetime, string or string_no_monotonic, or leave it out", name)
}
