#!/usr/bin/perl
# cookie: one=1; two=a%20b
use CGI; use CGI::Cookie;
my %c = CGI::Cookie->fetch;
print CGI->new->header('text/plain'), map { "$_=" . $c{$_}->value . "\n" } sort keys %c;
print CGI::Cookie->new(-name => 'n', -value => 'v', -path => '/p', -httponly => 1)->as_string, "\n";
