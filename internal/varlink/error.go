// SPDX-License-Identifier: MIT

package varlink

import (
	"encoding/json"
	"fmt"
)

// Error is an error reply. A server's [Method] returns one to say what the client is to see; a [Client]'s call
// returns the one it got. Parameters is any value that marshals to a JSON object, or nil; on the client's side
// it is a [json.RawMessage], see Decode.
type Error struct {
	// Name is qualified by an interface: "org.varlink.service.InvalidParameter".
	Name       string
	Parameters any
}

// Error is the name with the parameters as JSON, if there are any.
func (e *Error) Error() string {
	parameters, err := json.Marshal(e.Parameters)
	if s := string(parameters); err == nil && s != "null" && s != "{}" {
		return e.Name + " " + s
	}
	return e.Name
}

// Decode puts the parameters into dst. Those that dst doesn't have are ignored.
func (e *Error) Decode(dst any) error {
	parameters, err := json.Marshal(e.Parameters)
	if err == nil {
		err = json.Unmarshal(parameters, dst)
	}
	if err != nil {
		return fmt.Errorf("decoding the parameters of the varlink error %s: %w", e.Name, err)
	}
	return nil
}

// Names of the errors of org.varlink.service, which any method may return.
const (
	ErrInterfaceNotFound    = "org.varlink.service.InterfaceNotFound"
	ErrMethodNotFound       = "org.varlink.service.MethodNotFound"
	ErrMethodNotImplemented = "org.varlink.service.MethodNotImplemented"
	ErrInvalidParameter     = "org.varlink.service.InvalidParameter"
	ErrPermissionDenied     = "org.varlink.service.PermissionDenied"
	ErrExpectedMore         = "org.varlink.service.ExpectedMore"
)

// InvalidParameter says which parameter of a call is wrong, or missing.
func InvalidParameter(parameter string) *Error {
	return &Error{Name: ErrInvalidParameter, Parameters: map[string]string{"parameter": parameter}}
}
