// SPDX-License-Identifier: MIT

//go:build linux

package varlink

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

const serviceName = "org.varlink.service"

// The text is the specification's (https://varlink.org/Service).
const serviceDescription = `# The Varlink Service Interface is provided by every varlink service. It
# describes the service and the interfaces it implements.
interface org.varlink.service

# Get a list of all the interfaces a service provides and information
# about the implementation.
method GetInfo() -> (
  vendor: string,
  product: string,
  version: string,
  url: string,
  interfaces: []string
)

# Get the description of an interface that is implemented by this service.
method GetInterfaceDescription(interface: string) -> (description: string)

# The requested interface was not found.
error InterfaceNotFound (interface: string)

# The requested method was not found
error MethodNotFound (method: string)

# The interface defines the requested method, but the service does not
# implement it.
error MethodNotImplemented (method: string)

# One of the passed parameters is invalid.
error InvalidParameter (parameter: string)

# Client is denied access
error PermissionDenied ()

# Method is expected to be called with 'more' set to true, but wasn't
error ExpectedMore ()
`

// methods are a server's methods by qualified name, and its interfaces. A method that is declared and not
// implemented is nil.
type methods struct {
	byName     map[string]Method
	interfaces map[string]bool
}

var declaredMethod = regexp.MustCompile(`(?m)^[ \t]*method[ \t]+([A-Z][A-Za-z0-9]*)`)

func (s *Server) methods() (*methods, error) {
	ms := &methods{byName: make(map[string]Method), interfaces: make(map[string]bool)}
	for _, i := range append(slices.Clone(s.Interfaces), s.service()) {
		if ms.interfaces[i.Name] {
			return nil, fmt.Errorf("varlink interface %s is there twice", i.Name)
		}
		ms.interfaces[i.Name] = true
		for _, match := range declaredMethod.FindAllStringSubmatch(i.Description, -1) {
			ms.byName[i.Name+"."+match[1]] = nil
		}
		for name, method := range i.Methods {
			qualified := i.Name + "." + name
			if _, declared := ms.byName[qualified]; !declared {
				return nil, fmt.Errorf("varlink method %s is not in its interface's description", qualified)
			}
			ms.byName[qualified] = method
		}
	}
	return ms, nil
}

func (ms *methods) find(name string) (Method, error) {
	if method, declared := ms.byName[name]; method != nil {
		return method, nil
	} else if declared {
		return nil, &Error{Name: ErrMethodNotImplemented, Parameters: map[string]string{"method": name}}
	}
	dot := strings.LastIndexByte(name, '.')
	if dot < 0 {
		return nil, InvalidParameter("method")
	}
	if !ms.interfaces[name[:dot]] {
		return nil, interfaceNotFound(name[:dot])
	}
	return nil, &Error{Name: ErrMethodNotFound, Parameters: map[string]string{"method": name}}
}

func interfaceNotFound(name string) *Error {
	return &Error{Name: ErrInterfaceNotFound, Parameters: map[string]string{"interface": name}}
}

// service is org.varlink.service, which each server has.
func (s *Server) service() Interface {
	type info struct {
		Vendor     string   `json:"vendor"`
		Product    string   `json:"product"`
		Version    string   `json:"version"`
		URL        string   `json:"url"`
		Interfaces []string `json:"interfaces"`
	}
	type description struct {
		Description string `json:"description"`
	}
	descriptions := map[string]string{serviceName: serviceDescription}
	names := []string{serviceName}
	for _, i := range s.Interfaces {
		descriptions[i.Name] = i.Description
		names = append(names, i.Name)
	}
	return Interface{
		Name:        serviceName,
		Description: serviceDescription,
		Methods: map[string]Method{
			"GetInfo": func(_ context.Context, call *Call) (*Reply, error) {
				if err := call.Parameters(&struct{}{}); err != nil {
					return nil, err
				}
				return &Reply{Parameters: info{s.Vendor, s.Product, s.Version, s.URL, names}}, nil
			},
			"GetInterfaceDescription": func(_ context.Context, call *Call) (*Reply, error) {
				var in struct {
					Interface string `json:"interface"`
				}
				if err := call.Parameters(&in); err != nil {
					return nil, err
				}
				text, ok := descriptions[in.Interface]
				if !ok {
					return nil, interfaceNotFound(in.Interface)
				}
				return &Reply{Parameters: description{text}}, nil
			},
		},
	}
}
