"""CGI/1.1 (RFC 3875): a request as meta-variables, a script's output as a response.

CGI, FastCGI, SCGI and WSGI take their facts from `meta_variables`; whatever
answers as a script does, by a pipe or by STDOUT records, goes through
`response`.
"""
