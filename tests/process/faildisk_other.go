//go:build !unix

package process

import "errors"

// failDisk needs the limits that Unix has for the size of files.
func failDisk() error { return errors.ErrUnsupported }
