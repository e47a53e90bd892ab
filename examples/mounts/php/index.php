<?php
header('Content-Type: text/plain; charset=utf-8');
echo "PHP at ", $_SERVER['SCRIPT_NAME'], ", for ", $_SERVER['REQUEST_URI'], "\n";
echo strlen(file_get_contents('php://input')), " bytes\n";
