#!/usr/bin/perl
# query: a=1&b=two&b=three&c=%C3%A9+x
use strict; use warnings; use CGI qw(:standard -utf8);
print header(-charset => 'utf-8', -cookie => cookie(-name => 's', -value => 'v')) =~ s/^Date:.*\r\n//mr;
print start_html('Form'), h1('Values'), ul(map { li("$_ = " . join "/", multi_param($_)) } sort(param())), end_html, "\n";
print self_url(), " ", url(-relative => 1), " ", request_method(), " ", remote_host(), "\n";
