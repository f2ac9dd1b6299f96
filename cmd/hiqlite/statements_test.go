package main

import (
	"slices"
	"strings"
	"testing"
)

func TestSplitter(t *testing.T) {
	const trigger = "CREATE TEMP TRIGGER x AFTER INSERT ON t BEGIN UPDATE t SET a=CASE WHEN 1 THEN 2 ELSE 3 END; SELECT 1; END;"
	for text, want := range map[string][]string{
		"SELECT 1;":                      {"SELECT 1;"},
		"SELECT 1; SELECT 2;":            {"SELECT 1;", "SELECT 2;"},
		"SELECT ';'; SELECT \";\";":      {"SELECT ';';", "SELECT \";\";"},
		"SELECT 'it''s;'; SELECT [;];":   {"SELECT 'it''s;';", "SELECT [;];"},
		"-- ;\nSELECT 1 /* ; */;":        {"-- ;\nSELECT 1 /* ; */;"},
		trigger + "SELECT 1;":            {trigger, "SELECT 1;"},
		"EXPLAIN " + trigger:             {"EXPLAIN " + trigger},
		"BEGIN; INSERT INTO t; END;":     {"BEGIN;", "INSERT INTO t;", "END;"},
		"SELECT CASE 1 WHEN 1 THEN 2;":   {"SELECT CASE 1 WHEN 1 THEN 2;"},
		"CREATE TABLE trigger(begin);":   {"CREATE TABLE trigger(begin);"},
		"CREATE TABLE t(a); SELECT 'x":   {"CREATE TABLE t(a);", "... SELECT 'x"},
		"SELECT /* never ends ;":         {"... SELECT /* never ends ;"},
		"SELECT 1 -- the end":            {"... SELECT 1 -- the end"},
		"INSERT INTO créer VALUES('é;')": {"... INSERT INTO créer VALUES('é;')"},
	} {
		var got []string
		s := splitter{rest: text}
		for strings.TrimSpace(s.rest) != "" {
			statement, complete := s.next()
			if !complete {
				got = append(got, "... "+strings.TrimSpace(statement))
				break
			}
			got = append(got, statement)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q was split into %q, want %q", text, got, want)
		}
	}
}

func TestBlank(t *testing.T) {
	for text, want := range map[string]bool{"": true, " ;\n -- x\n /* y */ ;": true, "x": false, "/* open": false, "''": false} {
		if blank(text) != want {
			t.Errorf("blank(%q) is %v", text, !want)
		}
	}
}
