#!/usr/bin/perl
# type: application/x-www-form-urlencoded
# body: name=Ren%C3%A9e&text=a%0Ab&n=1&n=2
use CGI; my $q = CGI->new;
print $q->header('text/plain'), map { my $k = $_; map { "$k=$_\n" } $q->multi_param($k) } sort $q->param;
