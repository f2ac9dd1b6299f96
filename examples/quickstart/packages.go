package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
)

// A goPackage is what go list prints about a package.
type goPackage struct {
	ImportPath, Name, Doc string
	Imports               []string
}

// standardLibrary returns the packages of the installed Go.
func standardLibrary(ctx context.Context) (packages []goPackage, err error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-json=ImportPath,Name,Doc,Imports", "std").Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var p goPackage
		if err := d.Decode(&p); err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		packages = append(packages, p)
	}
	return packages, nil
}
